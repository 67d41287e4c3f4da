"""Which weights of which model: families and groups, loading, and putting the undamaged values back."""
