"""What every PreMoE process needs: server, health, errors, telemetry, settings."""
