"""The live side: what runs operations, keeps the lease alive and delivers watch events. Knows no collection."""
