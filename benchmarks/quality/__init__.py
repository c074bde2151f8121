"""`make bench-quality`: the learning systems against each other on real photographs, three seeds each."""
