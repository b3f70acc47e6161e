"""What a person looks at and decides: images before a product's first night, and proposed masks."""
