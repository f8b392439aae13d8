"""The commands `iafvae` and `iafvae-score-dataset`."""
