"""FITS in and out"""
