// Posts one write to the replicator and repeats it until it is accepted, in the way that a gateway
// should. It needs nothing but Go 1.19:
//
//	go run main.go -key user/7 -value hello -primary http://127.0.0.1:8080 \
//	    http://127.0.0.1:8081 http://127.0.0.1:8082
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	mathrand "math/rand"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// Write is the body of POST /replicate.
type Write struct {
	Key          string        `json:"key"`
	Value        []byte        `json:"value"` // as base64
	Operation    string        `json:"operation"`
	TTL          time.Duration `json:"ttl"` // as nanoseconds
	Consistency  string        `json:"consistency"`
	PrimaryNode  string        `json:"primary_node"` // verify compares the replicas with it
	ReplicaNodes []string      `json:"replica_nodes"`
	UserID       int64         `json:"user_id"`
}

// Answer is the body of every answer; an error has no TaskID, unless the write is accepted.
type Answer struct {
	Success     bool     `json:"success"`
	TaskID      string   `json:"task_id"`
	AckedNodes  []string `json:"acked_nodes"`
	FailedNodes []string `json:"failed_nodes"`
	Error       string   `json:"error"`
}

// ErrNoMajority is the error of a strong write that is accepted, and delivered in the background, but
// that no majority has acknowledged in time. Do not repeat it.
var ErrNoMajority = errors.New("no majority has acknowledged the write")

// Client is safe for use by many goroutines.
type Client struct {
	URL   string
	Token string
	HTTP  *http.Client
}

// NewClient returns a client that keeps connections open for less time than the daemon does
// (--client-timeout). Its timeout is longer than --strong-timeout.
func NewClient(url, token string) *Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64
	transport.IdleConnTimeout = 5 * time.Second
	return &Client{URL: url, Token: token, HTTP: &http.Client{Transport: transport, Timeout: 15 * time.Second}}
}

// Replicate posts the write until it is accepted, it can never be accepted, or ctx ends. Meanwhile the
// caller posts no other write of this key, as the order of acceptance is the order of the writes.
func (c *Client) Replicate(ctx context.Context, write Write) (Answer, error) {
	body, err := json.Marshal(write)
	if err != nil {
		return Answer{}, err
	}
	// Under the same key and with the same bytes, a repeat is the same write.
	var random [16]byte
	if _, err := rand.Read(random[:]); err != nil {
		return Answer{}, err
	}
	key := hex.EncodeToString(random[:])
	jitter := mathrand.New(mathrand.NewSource(time.Now().UnixNano()))
	for backoff := 200 * time.Millisecond; ; backoff = min(2*backoff, 5*time.Second) {
		answer, wait, err := c.post(ctx, body, key)
		if err == nil || wait < 0 {
			return answer, err
		}
		wait = max(wait, backoff)
		// Clients that were refused together do not return together.
		wait += time.Duration(jitter.Int63n(int64(wait)/2 + 1))
		fmt.Fprintf(os.Stderr, "%v; again in %v\n", err, wait.Round(time.Millisecond))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return answer, fmt.Errorf("%w: %v", ctx.Err(), err)
		}
	}
}

// post sends the write once. After an error it returns the time to wait at least, or -1 for an error
// that a repeat does not change.
func (c *Client) post(ctx context.Context, body []byte, key string) (Answer, time.Duration, error) {
	var answer Answer
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL+"/replicate", bytes.NewReader(body))
	if err != nil {
		return answer, -1, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Idempotency-Key", key)
	if c.Token != "" {
		request.Header.Set("Authorization", "Bearer "+c.Token)
	}
	response, err := c.HTTP.Do(request)
	if err != nil {
		// The write may be accepted.
		return answer, 0, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return answer, 0, err
	}
	// A proxy may answer with something else.
	_ = json.Unmarshal(text, &answer)
	err = fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(text)))
	switch response.StatusCode {
	case http.StatusOK, http.StatusAccepted:
		return answer, 0, nil
	case http.StatusServiceUnavailable:
		if answer.TaskID != "" {
			return answer, -1, fmt.Errorf("%w: %s", ErrNoMajority, answer.Error)
		}
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusGatewayTimeout:
	default:
		return answer, -1, err
	}
	seconds, _ := strconv.Atoi(response.Header.Get("Retry-After"))
	return answer, time.Duration(seconds) * time.Second, err
}

func min(a, b time.Duration) time.Duration {
	if a < b {
		return a
	}
	return b
}

func max(a, b time.Duration) time.Duration {
	if a > b {
		return a
	}
	return b
}

func main() {
	url := flag.String("url", "http://127.0.0.1:8085", "address of the replicator")
	key := flag.String("key", "", "key")
	value := flag.String("value", "", "value; with -delete it is not used")
	remove := flag.Bool("delete", false, "delete the key")
	strong := flag.Bool("strong", false, "wait for a majority")
	primary := flag.String("primary", "", "address of the primary node, with which verify compares the replicas")
	user := flag.Int64("user", 1, "user id")
	patience := flag.Duration("patience", time.Minute, "time after which it gives up")
	flag.Parse()

	write := Write{Key: *key, Operation: "SET", Value: []byte(*value), Consistency: "eventual", PrimaryNode: *primary, ReplicaNodes: flag.Args(), UserID: *user}
	if *remove {
		write.Operation, write.Value = "DELETE", nil
	}
	if *strong {
		write.Consistency = "strong"
	}
	ctx, cancel := context.WithTimeout(context.Background(), *patience)
	defer cancel()
	answer, err := NewClient(*url, os.Getenv("REPLICATOR_TOKEN")).Replicate(ctx, write)
	switch {
	case errors.Is(err, ErrNoMajority):
		fmt.Printf("accepted as task %s, acknowledged by %d, not by %d\n", answer.TaskID, len(answer.AckedNodes), len(answer.FailedNodes))
		os.Exit(3)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	case *strong:
		fmt.Printf("acknowledged by %s\n", strings.Join(answer.AckedNodes, " "))
	default:
		fmt.Printf("accepted as task %s\n", answer.TaskID)
	}
}
