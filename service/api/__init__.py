"""HTTP: routes, parsing of requests, rendering of answers, access."""
