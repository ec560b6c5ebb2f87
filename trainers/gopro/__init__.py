"""GOPro (BMVC 2023): prompts generated from each image's content and style."""
