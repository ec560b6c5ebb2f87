"""Operations on features and labels."""
