"""From lists of links to a pool: the pass, its client, and whom it may connect to."""
