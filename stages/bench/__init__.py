"""The benchmark: this project compared with what people use, on one machine. It is no stage of the graph."""
