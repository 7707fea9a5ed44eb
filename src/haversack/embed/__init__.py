"""From a graph to C for microcontrollers."""
