"""The command `iafvae`."""
