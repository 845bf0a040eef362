"""Code of feedback alone: labels of answers, the choice of pairs, biases of labels, pages."""
