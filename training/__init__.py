"""From images to a trained model, its figures and a bundle that the service can load."""
