"""UHD: detectors of people that are small enough for 64x64 images and a microcontroller."""

__version__ = "0.1.0"
