"""Figures as every page and folder of this project has them: colours, marks, and SVG that needs no network."""
