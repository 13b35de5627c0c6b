"""Fine-tuning of the U-Net, and training of a VAE."""
