"""Calls a gRPC method with raw bytes and prints the name of the status code and the message.

usage: grpc_raw.py ENDPOINT METHOD gzip|none COUNT  (the request is COUNT times the bytes on standard input)
"""

import sys

import grpc

endpoint, method, compression, count = sys.argv[1:5]
request = sys.stdin.buffer.read() * int(count)
with grpc.insecure_channel(endpoint, options=[("grpc.max_send_message_length", -1)]) as channel:
    call = channel.unary_unary(method, request_serializer=None, response_deserializer=None)
    try:
        response = call(
            request,
            timeout=20,
            compression=grpc.Compression.Gzip if compression == "gzip" else grpc.Compression.NoCompression,
        )
        print("OK", response.hex())
    except grpc.RpcError as error:
        print(error.code().name, error.details())
