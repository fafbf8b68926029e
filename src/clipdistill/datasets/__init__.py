"""Raw layouts in; one image table, one label array and one class list out."""
