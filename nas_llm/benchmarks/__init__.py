"""What the package's own machinery costs, measured side by side with what it is compared to."""
