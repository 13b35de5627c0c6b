"""Result files: COGs, STAC items, previews."""
