"""Annotation: what a person accepts or rejects, images before a first night and proposed masks."""
