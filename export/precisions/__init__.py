"""Forms of one float graph in other number formats, each written weight by weight from the graph in fp32."""
