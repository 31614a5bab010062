"""What ties the service to a line: a watched folder, MQTT, OPC UA."""
