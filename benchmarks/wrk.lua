-- One request over and over: its body is in the file BENCH_BODY, its headers in BENCH_HEADERS, a "name: value" a line.
local file = assert(io.open(os.getenv("BENCH_BODY"), "rb"))
wrk.method, wrk.body = "POST", file:read("*a")
file:close()
for name, value in os.getenv("BENCH_HEADERS"):gmatch("([^\n:]+): ([^\n]+)") do
  wrk.headers[name] = value
end
