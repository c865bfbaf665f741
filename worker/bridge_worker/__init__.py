"""The worker: pods that own the Deepgram agent connections and run the customer's handlers."""
