"""What a study asks of services: answers of the start, and labels of its pairs."""
