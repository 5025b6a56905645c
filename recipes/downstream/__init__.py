"""Tasks that are solved on the tokens of a codec."""
