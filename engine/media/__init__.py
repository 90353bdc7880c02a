"""Frames in and out: files, folders of pictures, contact sheets."""
