// SPDX-License-Identifier: Apache-2.0

// A service in one transaction, a release by one pointer, a host's answer: etcd's own Go client.
//
//	go run client.go 127.0.0.1:2379 /tidegate/edge lb1
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

type document map[string]any

func text(d document) string {
	raw, err := json.Marshal(d)
	if err != nil {
		log.Fatal(err)
	}
	return string(raw)
}

func main() {
	endpoint, fleet, host := os.Args[1], os.Args[2], os.Args[3]
	etcd, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{endpoint},
		DialTimeout: 5 * time.Second,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer etcd.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	// All of it becomes one generation on every host, or none of it.
	release := fleet + "/config/go-1"
	web := release + "/pools/web"
	_, err = etcd.Txn(ctx).Then(
		clientv3.OpPut(web, text(document{"deregistration_delay": 60})),
		clientv3.OpPut(web+"/backends/a", text(document{"address": "198.51.100.7"})),
		clientv3.OpPut(web+"/backends/b", text(document{"address": "198.51.100.8", "weight": 50})),
		clientv3.OpPut(release+"/vips/shop", text(document{
			"address": "192.0.2.10", "port": 443, "protocol": "tcp", "pool": "web",
		})),
	).Commit()
	if err != nil {
		log.Fatal(err)
	}

	// A backend that goes away is deleted: it drains by itself.
	if _, err = etcd.Delete(ctx, web+"/backends/b"); err != nil {
		log.Fatal(err)
	}

	// Every host on the track moves to the release at once; the same write again is the way back.
	_, err = etcd.Put(ctx, fleet+"/tracks/stable", text(document{"release": "go-1"}))
	if err != nil {
		log.Fatal(err)
	}

	// What a host says of it: in force, or refused and why.
	answer, err := etcd.Get(ctx, fleet+"/status/"+host)
	if err != nil {
		log.Fatal(err)
	}
	for _, kv := range answer.Kvs {
		var status struct {
			State      string
			Generation int
			Refusals   []struct{ Key, Reason string }
		}
		if err := json.Unmarshal(kv.Value, &status); err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s generation %d\n", status.State, status.Generation)
		for _, refusal := range status.Refusals {
			fmt.Printf("%s: %s\n", refusal.Key, refusal.Reason)
		}
	}
}
