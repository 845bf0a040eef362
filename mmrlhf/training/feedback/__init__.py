"""What feedback alone needs: labels of answers, the choice of pairs, biases of labels, pages."""
