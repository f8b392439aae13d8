"""From a folder of good images to verdicts: `iafvae-train inspect`."""
