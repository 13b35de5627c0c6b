"""STAC items of SAR scenes."""

import json

TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"


def write_item(folder, assets, **properties):
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "s1",
        "geometry": {"type": "Point", "coordinates": [15.0, 45.1]},
        "bbox": [15.0, 45.1, 15.0, 45.1],
        "properties": {
            "datetime": "2022-03-04T05:06:07.5Z",
            "platform": "sentinel-1a",
            "sat:orbit_state": "ascending",
            **properties,
        },
        "links": [],
        "assets": assets,
    }
    path = folder / "item.json"
    path.write_text(json.dumps(item))
    return path
