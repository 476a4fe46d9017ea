"""The benchmark: this project beside what people use, measured in turn on one machine. No stage of the graph."""
