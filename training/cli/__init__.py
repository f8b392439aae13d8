"""The command `iafvae-train`."""
