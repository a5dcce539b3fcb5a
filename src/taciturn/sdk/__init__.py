"""The client of a gateway: where the data cannot come to you, your job goes to the data.

    client = Client("https://taciturn.example", token)     # client.py: the way in
    data = client.dataset("phee")                          # dataset.py: terms and preview, no rows
    job = data.fit("meta-llama/Llama-2-7b-hf", ...)        # job.py: state, events, result
    model = job.result()                                   # model.py: sample, evaluate, audit ...

Everything goes through `transport.py`: timeouts, repeats, errors. No torch, no engine, no server.
"""
