"""How any method runs: the loop, the images, the features, the checkpoints, the tests."""
