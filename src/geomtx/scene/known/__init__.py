"""What is known of a scene: cameras by the names of their photos, lengths, and what most of them agree on."""
