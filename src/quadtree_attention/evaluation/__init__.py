"""How good results are: protocols, metrics, sets of pairs, tables."""
