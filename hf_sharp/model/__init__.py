"""What is read from, or changed in, a trained model: its head, its curvature, its loss surface."""
