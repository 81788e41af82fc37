"""Showing a detector at work: sources of pictures, drawing, window, files. numpy, OpenCV and onnxruntime only."""
