"""InMaP (NeurIPS 2023): class proxies in vision space from unlabelled images."""
