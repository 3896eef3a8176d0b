"""Bad input on purpose: cases made from valid ones, what judges them, and the engines that look for more."""
