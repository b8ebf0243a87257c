"""The tables of two papers: what they contain, the runs that rebuild them, and their layout."""
