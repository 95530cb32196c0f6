"""Device meshes and the rules that lay arrays out over them."""
