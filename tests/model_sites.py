"""Applications whose models change while they answer: by their manager, and by their watcher."""

from __future__ import annotations

from service.repository.watcher import Watcher


class Site:
    """An application on a directory of models, its manager's operations as plain functions."""

    def __init__(self, client):
        self.client, self.app = client, client.app
        self.manager = client.app.state.manager
        self.registry = client.app.state.shared.registry

    def run(self, work):
        return self.client.run(work)

    def load(self, directory, **how):
        """Load a directory's bundle; gives the change."""
        return self.run(self.manager.load(directory, **how))

    def versions(self):
        """Of the models that are loaded."""
        return [m["version"] for m in self.client.get("/v1/models").json()["models"]]

    def failed(self):
        """Directory -> why its bundle was refused."""
        found = self.client.get("/v1/models").json()["failed"]
        return {entry["directory"]: entry["reason"] for entry in found}

    def answering(self, **options):
        """The version that a request gets, which must be answered."""
        answer = self.client.post("/v1/sample", json={"seed": 1, **options})
        assert answer.status_code == 200, answer.text
        return answer.headers["x-iafvae-version"]

    def metric(self, name, **labels):
        """A sample's value; 0 where it does not exist yet."""
        return self.client.metric(name, **labels)


class Watched:
    """An application, and a watcher that looks when told to."""

    def __init__(self, client):
        self.client = client
        self.manager, self.registry = client.app.state.manager, client.app.state.shared.registry
        self.watcher = Watcher(self.manager, self.registry)
        self.looks(2)  # what was loaded at the start is at rest

    def looks(self, times=1):
        """Let the watcher look."""
        for _ in range(times):
            self.client.run(self.watcher.look())

    @property
    def loaded(self):
        """Directory -> version."""
        return {m.directory: m.version for m in self.registry.models}
