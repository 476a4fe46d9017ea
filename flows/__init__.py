"""Prefect flows that drive DVC: dvc.yaml alone knows the graph."""
