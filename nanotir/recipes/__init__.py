"""One file per published system; each defines `train(run)`."""
