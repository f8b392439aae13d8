"""Sample, decode, encode, score, reconstruct, interpolate: no HTTP."""
