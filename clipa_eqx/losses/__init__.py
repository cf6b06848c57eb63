"""Contrastive losses between image and text embeddings, for complete batches and for batches split over devices."""
