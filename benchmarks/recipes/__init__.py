"""Which training recipe is best, on parts held out of `train` and `val`; `test` is never opened."""
